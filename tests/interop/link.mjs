// One connection with the WebSocket interface that browsers and the npm package ws share: what
// peer_ws.mjs and peer_page.html have in common.

export async function digest(data) {
  const [kind, bytes] =
    typeof data === "string" ? ["text", new TextEncoder().encode(data)] : ["binary", new Uint8Array(data)];
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${kind} ${bytes.length} ${hex}`;
}

// Values that wait to be taken, or the other way round.
export class Queue {
  #values = [];
  #takers = [];

  put(value) {
    const taker = this.#takers.shift();
    if (taker) taker(value);
    else this.#values.push(value);
  }

  take() {
    if (this.#values.length) return Promise.resolve(this.#values.shift());
    return new Promise((resolve) => this.#takers.push(resolve));
  }
}

export class Link {
  constructor(socket) {
    this.socket = socket;
    this.messages = new Queue();
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => this.messages.put(event.data);
    this.end = new Promise((resolve) => {
      socket.onclose = (event) => resolve({ code: event.code, reason: event.reason });
    });
    this.open = new Promise((resolve, reject) => {
      socket.onopen = () => resolve({ subprotocol: socket.protocol || null });
      socket.onerror = reject;
    });
    this.open.catch(() => {}); // reported by whoever waits for it; also fired by later errors
  }

  async echo({ count }) {
    const digests = [];
    while (digests.length < count) {
      const data = await this.messages.take();
      digests.push(await digest(data));
      this.socket.send(data);
    }
    return digests;
  }

  close({ code, reason }) {
    if (code === null) this.socket.close();
    else this.socket.close(code, reason);
    return this.end;
  }

  closed() {
    return this.end;
  }
}
