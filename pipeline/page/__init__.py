"""The parts of an HTML page that needs nothing but itself: elements, charts, style."""
