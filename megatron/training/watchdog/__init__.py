"""The watch over a run: who hangs, who is lost, who is slow, told by threads that wait for nobody."""
