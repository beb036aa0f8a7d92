"""The five kinds of message, their envelope, sealing, and the file that holds them."""
