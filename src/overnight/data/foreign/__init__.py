"""Token files of other programs: nanoGPT's, build-nanogpt's, llm.c's (and modded-nanogpt's), read and written."""
