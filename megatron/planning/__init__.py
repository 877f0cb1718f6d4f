"""What a run will hold, move and take, counted before any of it exists: behind tools/plan.py."""
