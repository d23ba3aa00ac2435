source (status dirname)/runmaker4.fish     # made by docs/install/make.py
complete -c runmaker4.py -w runmaker4
