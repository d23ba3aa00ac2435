source (status dirname)/runmaker4-server.fish     # made by docs/install/make.py
complete -c runmaker4-server.py -w runmaker4-server
