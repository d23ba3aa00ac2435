complete -c runset4.py -w runset4     # made by docs/install/make.py
