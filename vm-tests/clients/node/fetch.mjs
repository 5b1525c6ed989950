// fetch, as Node.js, Bun and Deno have it built in. The last argument is the case.
const api = "https://api.clients.example";
const headers = { Authorization: "Bearer placeholder", "Content-Type": "application/json" };
const asked = (globalThis.Deno ? Deno.args : process.argv).at(-1);

if (asked === "read") {
  const answer = await fetch(`${api}/v1/things/42`, { headers });
  console.log(answer.status, await answer.text());
} else if (asked === "write") {
  const answer = await fetch(`${api}/v1/orders`, { method: "POST", headers, body: JSON.stringify({ note: "juniper" }) });
  console.log(answer.status, await answer.text());
} else {
  const answer = await fetch(`${api}/v1/events`, { headers });
  const decoder = new TextDecoder();
  for await (const piece of answer.body) console.log(decoder.decode(piece, { stream: true }));
}
