"""AdamW, schedules, clipping."""
