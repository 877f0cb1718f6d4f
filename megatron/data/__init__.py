"""From .bin/.idx files to samples, by arithmetic."""
