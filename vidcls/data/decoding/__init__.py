"""Video files to frames. The only room that imports decord and av."""
