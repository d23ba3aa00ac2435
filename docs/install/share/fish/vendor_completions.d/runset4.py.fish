source (status dirname)/runset4.fish     # made by docs/install/make.py
complete -c runset4.py -w runset4
