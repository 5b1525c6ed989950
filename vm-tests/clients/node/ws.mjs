// ws.
import WebSocket from "ws";

const said = { read: "read", write: "juniper", stream: "stream" };
const socket = new WebSocket("wss://ws.clients.example/v1/socket", ["orders.v1"], { headers: { Authorization: "Bearer placeholder" } });
socket.on("open", () => socket.send(said[process.argv.at(-1)]));
socket.on("message", (message) => console.log(message.toString()));
socket.on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
