"""The demonstration and the images it makes. Imports every other room."""
