"""Where results are and who writes them: files, run folders, processes, devices."""
