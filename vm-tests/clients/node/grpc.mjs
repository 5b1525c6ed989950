// @grpc/grpc-js, unary and server streaming; the messages are plain bytes, so that nothing needs to be generated.
import grpc from "@grpc/grpc-js";

const client = new grpc.Client("grpc.clients.example:443", grpc.credentials.createSsl());
const metadata = new grpc.Metadata();
metadata.set("authorization", "Bearer placeholder");
const plain = (bytes) => bytes;
const unary = (method, text) =>
  client.makeUnaryRequest(`/clients.Orders/${method}`, plain, plain, Buffer.from(text), metadata, (error, answer) => {
    if (error) {
      console.error(error.message);
      process.exitCode = 1;
    } else {
      console.log(answer.toString());
    }
  });

const asked = process.argv.at(-1);
if (asked === "read") {
  unary("Read", "read");
} else if (asked === "write") {
  unary("Place", "juniper");
} else {
  const stream = client.makeServerStreamRequest("/clients.Orders/Watch", plain, plain, Buffer.from("watch"), metadata);
  stream.on("data", (message) => console.log(message.toString()));
  stream.on("error", (error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
