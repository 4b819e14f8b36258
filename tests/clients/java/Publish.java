import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.net.http.WebSocket;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * java Publish.java API WEBSOCKET: publishes with java.net.http.HttpClient, which offers HTTP/2 with each request
 * (Upgrade: h2c), and listens on a WebSocket of the same client. Prints one line for each answer and for each message.
 */
public class Publish {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        LinkedBlockingQueue<String> messages = new LinkedBlockingQueue<>();
        WebSocket socket = client.newWebSocketBuilder().buildAsync(URI.create(args[1]), new WebSocket.Listener() {
            @Override
            public CompletionStage<?> onText(WebSocket webSocket, CharSequence data, boolean last) {
                messages.add(data.toString());
                webSocket.request(1);
                return null;
            }
        }).get(10, TimeUnit.SECONDS);
        HttpRequest.Builder to = HttpRequest.newBuilder(URI.create(args[0])).header("Content-Type", "application/json");
        for (String body : new String[] {"1", "\"" + "x".repeat(9000) + "\"", "3"}) {
            String event = "{\"name\":\"e\",\"channels\":[\"java\"],\"data\":" + body + "}";
            HttpRequest request = to.POST(HttpRequest.BodyPublishers.ofString(event)).build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.version() + " " + answer.body());
            System.out.println(messages.poll(10, TimeUnit.SECONDS));
        }
        socket.sendClose(WebSocket.NORMAL_CLOSURE, "").get(10, TimeUnit.SECONDS);
        System.exit(0);
    }
}
