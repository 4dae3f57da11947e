"""What is done with decisions: fixing choices, and their price."""
