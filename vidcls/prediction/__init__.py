"""What predict.py does, and the predictor that evaluation shares."""
