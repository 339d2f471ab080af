"""Atlases: the circuits of whole layers and networks in one directory, made chunk by chunk, and asked questions.

asking.py says what is asked, store.py how it lies on disk, work.py makes one chunk, building.py all that are left;
devices.py and cluster.py share chunks out; reading.py and questions.py answer.
"""
