source (status dirname)/runwait4.fish     # made by docs/install/make.py
complete -c runwait4.py -w runwait4
