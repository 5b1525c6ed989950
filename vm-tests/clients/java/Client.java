import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** java.net.http.HttpClient, which speaks HTTP/2 by itself. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        String api = "https://api.clients.example";
        switch (arguments[0]) {
            case "read" -> show(client, request(api + "/v1/things/42").GET());
            case "write" -> show(client, request(api + "/v1/orders").POST(HttpRequest.BodyPublishers.ofString("{\"note\":\"juniper\"}")));
            default -> client.send(request(api + "/v1/events").GET().build(), BodyHandlers.ofLines()).body().forEach(System.out::println);
        }
    }

    private static HttpRequest.Builder request(String url) {
        return HttpRequest.newBuilder(URI.create(url)).header("Authorization", "Bearer placeholder").header("Content-Type", "application/json");
    }

    private static void show(HttpClient client, HttpRequest.Builder request) throws Exception {
        var answer = client.send(request.build(), BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
