"""From predictions to numbers: metrics, intervals, calibration, rejection and comparison."""
