"""The program: `python -m launch VERB`. It knows devices, files and time; nothing of LRP or CT."""
