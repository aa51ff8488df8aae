from anyio_ws import blocking

with blocking.connect("ws://127.0.0.1:9882/") as client:
    client.write("hello")
    message = client.read(timeout=5)
    print("nothing came" if message is None else message.data)
