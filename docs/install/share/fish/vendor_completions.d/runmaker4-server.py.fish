complete -c runmaker4-server.py -w runmaker4-server     # made by docs/install/make.py
