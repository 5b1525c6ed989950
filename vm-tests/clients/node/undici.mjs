// undici, over HTTP/2.
import { Agent, request } from "undici";

const api = "https://api.clients.example";
const dispatcher = new Agent({ allowH2: true });
const headers = { authorization: "Bearer placeholder", "content-type": "application/json" };
const asked = process.argv.at(-1);

if (asked === "read") {
  const answer = await request(`${api}/v1/things/42`, { dispatcher, headers });
  console.log(answer.statusCode, await answer.body.text());
} else if (asked === "write") {
  const answer = await request(`${api}/v1/orders`, { dispatcher, headers, method: "POST", body: JSON.stringify({ note: "juniper" }) });
  console.log(answer.statusCode, await answer.body.text());
} else {
  const answer = await request(`${api}/v1/events`, { dispatcher, headers });
  for await (const piece of answer.body) console.log(piece.toString());
}
await dispatcher.close();
