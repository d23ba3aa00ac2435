"""What programs from outside do that users or we guess wrong.

    python3 -m tests.outside            lists the scripts
    python3 -m tests.outside NAME       runs one; NAME can be a part that only one has

Each script gets pinned public packages into a temporary folder and runs them without runmaker4.  Its exit
status is 1 if they now do something else, and 2 if the packages cannot be had or the script needs root.  No
test runs them.  Code and documents that rely on one name its path.
"""
