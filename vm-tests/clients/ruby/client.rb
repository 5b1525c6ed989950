# Ruby's Net::HTTP.
require "json"
require "net/http"

uri = URI("https://api.clients.example")
headers = { "Authorization" => "Bearer placeholder", "Content-Type" => "application/json" }
$stdout.sync = true
Net::HTTP.start(uri.host, uri.port, use_ssl: true, read_timeout: 60) do |http|
  case ARGV.last
  when "read"
    puts http.get("/v1/things/42", headers).body
  when "write"
    answer = http.post("/v1/orders", JSON.generate(note: "juniper"), headers)
    puts answer.code, answer.body
  else
    http.request_get("/v1/events", headers) { |answer| answer.read_body { |piece| puts piece } }
  end
end
