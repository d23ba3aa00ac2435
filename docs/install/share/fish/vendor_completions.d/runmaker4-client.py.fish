source (status dirname)/runmaker4-client.fish     # made by docs/install/make.py
complete -c runmaker4-client.py -w runmaker4-client
