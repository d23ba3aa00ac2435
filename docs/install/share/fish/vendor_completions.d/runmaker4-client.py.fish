complete -c runmaker4-client.py -w runmaker4-client     # made by docs/install/make.py
