"""Know what is on the disk: image folders, captions, pictures and their copies."""
