// The program of the neighbour ws from npm, client and server: a line of JSON in, a line of JSON out.

import { readFileSync } from "node:fs";
import { createServer as createPlainServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { WebSocket, WebSocketServer } from "ws";
import { Link, Queue } from "./link.mjs";

const HOST = "127.0.0.1";
const accepted = new Queue();
let link = null;
let server = null;

const commands = {
  version() {
    return `ws ${createRequire(import.meta.url)("ws/package.json").version} on Node.js ${process.version}`;
  },

  async connect({ url, subprotocols, ca }) {
    const socket = new WebSocket(url, subprotocols, ca === null ? {} : { ca: readFileSync(ca) });
    const refused = new Promise((resolve) => {
      socket.on("unexpected-response", (request, response) => {
        request.destroy();
        resolve({ status: response.statusCode });
      });
    });
    link = new Link(socket);
    return await Promise.race([link.open, refused]);
  },

  async listen({ subprotocols, certificate, refuse }) {
    const pem = certificate === null ? null : readFileSync(certificate);
    server = pem === null ? createPlainServer() : createTlsServer({ cert: pem, key: pem });
    const sockets = new WebSocketServer({
      server,
      perMessageDeflate: true,
      verifyClient: (_, answer) => answer(!refuse, 403, "not you\n"),
      handleProtocols: (offered) => subprotocols.find((name) => offered.has(name)) ?? false,
    });
    sockets.on("connection", (socket) => accepted.put(new Link(socket)));
    await new Promise((resolve) => server.listen(0, HOST, resolve));
    return { port: server.address().port };
  },

  async accept() {
    link = await accepted.take();
    return { subprotocol: link.socket.protocol || null };
  },

  fragments({ parts, binary }) {
    parts.forEach((part, index) => {
      link.socket.send(binary ? Buffer.from(part) : part, { binary, fin: index === parts.length - 1 });
    });
  },

  async ping({ data }) {
    const pong = new Promise((resolve) => link.socket.once("pong", resolve));
    link.socket.ping(data);
    return (await pong).toString();
  },

  async stop() {
    link?.socket.close();
    await Promise.all([link?.end, server && new Promise((resolve) => server.close(resolve))]);
    link = server = null;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...rest } = JSON.parse(line);
  const answer = await (name in commands ? commands[name](rest) : link[name](rest));
  console.log(JSON.stringify(answer ?? null));
}
