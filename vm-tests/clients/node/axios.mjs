// axios.
import axios from "axios";

const api = axios.create({ baseURL: "https://api.clients.example", headers: { Authorization: "Bearer placeholder" } });
const asked = process.argv.at(-1);

if (asked === "read") {
  console.log((await api.get("/v1/things/42")).data);
} else if (asked === "write") {
  const answer = await api.post("/v1/orders", { note: "juniper" }, { validateStatus: null });
  console.log(answer.status, answer.data);
} else {
  const answer = await api.get("/v1/events", { responseType: "stream" });
  for await (const piece of answer.data) console.log(piece.toString());
}
