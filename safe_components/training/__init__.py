"""What every recipe shares and no algorithm owns: run directory, logging, checkpoint, evaluation."""
