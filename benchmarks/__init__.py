"""What `outdraft bench` and `outdraft tune` measure, and programs that write `results/*.json`."""
