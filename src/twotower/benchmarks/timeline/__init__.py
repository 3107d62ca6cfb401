"""What both towers do in a training step, on one clock: recorded, summed up, drawn, and written as a trace."""
