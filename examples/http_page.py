import anyio
from anyio_ws import Response, Server


class Silent:
    def client_message(self, data):
        pass


def page(request):
    if request.path == "/health":
        return Response(200, "well\n")
    return Response(404, "there is nothing here\n")


anyio.run(Server(Silent, http_handler=page).listen)
