"""Process grid, collectives and sharded layers: the only place that communicates inside a step."""
