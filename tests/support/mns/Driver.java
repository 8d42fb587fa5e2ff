import com.aliyun.mns.client.CloudQueue;
import com.aliyun.mns.client.MNSClient;
import com.aliyun.mns.client.MNSClientBuilder;
import com.aliyun.mns.common.BatchDeleteException;
import com.aliyun.mns.common.ClientException;
import com.aliyun.mns.common.ServiceException;
import com.aliyun.mns.common.ServiceHandlingRequiredException;
import com.aliyun.mns.common.auth.SignVersion;
import com.aliyun.mns.common.http.ClientConfiguration;
import com.aliyun.mns.model.Message;
import com.aliyun.mns.model.Message.MessageBodyType;
import com.aliyun.mns.model.PagingListResult;
import com.aliyun.mns.model.QueueMeta;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Date;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Makes the calls of a test with Alibaba's Java SDK. The protocol is described in driver.py.
 *
 * <p>Arguments: endpoint, key id, secret, token ('' for none), region, signature (V2, which is MNS's first, or V4).
 */
@SuppressWarnings("deprecation") // the numbers of messages, which the service will remove later
public final class Driver {
    private static final Gson GSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

    private final MNSClient client;

    private Driver(MNSClient client) {
        this.client = client;
    }

    public static void main(String[] arguments) throws Exception {
        // The SDK prints what it cannot read on standard output, which the driver uses.
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err);
        ClientConfiguration configuration = new ClientConfiguration();
        configuration.setSignatureVersion(SignVersion.valueOf(arguments[5]));
        MNSClient client = MNSClientBuilder.create()
            .accountEndpoint(arguments[0])
            .accessKeyId(arguments[1])
            .accessKeySecret(arguments[2])
            .securityToken(arguments[3])
            .region(arguments[4])
            .clientConfiguration(configuration)
            .build();
        Driver driver = new Driver(client);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            out.println(GSON.toJson(driver.verdict(GSON.fromJson(line, JsonObject.class))));
        }
        client.close();
        // The threads of the SDK would continue.
        System.exit(0);
    }

    private Map<String, Object> verdict(JsonObject request) throws Exception {
        try {
            Map<String, Object> verdict = new LinkedHashMap<>();
            verdict.put("value", answer(request));
            verdict.put("ok", true);
            return verdict;
        } catch (ServiceHandlingRequiredException error) {
            // The SDK wraps most errors of the service in this.
            return failure(error.getErrorCode(), error.getCause());
        } catch (ServiceException error) {
            return failure(error.getErrorCode(), error);
        } catch (ClientException error) {
            return failure("ClientException", error);
        }
    }

    private static Map<String, Object> failure(String code, Throwable error) {
        Map<String, Object> failed = new LinkedHashMap<>();
        String first = code;
        if (error instanceof BatchDeleteException) {
            ((BatchDeleteException) error).getErrorMessages()
                .forEach((handle, result) -> failed.put(handle, result.getErrorCode()));
            // This SDK has no code for the whole batch; the Python SDK uses the code of a part.
            first = (String) failed.values().iterator().next();
        }
        Map<String, Object> verdict = new LinkedHashMap<>();
        verdict.put("ok", false);
        verdict.put("code", first);
        verdict.put("failed", failed);
        return verdict;
    }

    private Object answer(JsonObject request) throws Exception {
        String call = request.get("call").getAsString();
        if (call.equals("list")) {
            return list(request);
        }
        String name = request.get("queue").getAsString();
        if (call.equals("create")) {
            return client.createQueue(meta(request)).getQueueURL();
        }
        CloudQueue queue = client.getQueueRef(name);
        boolean plain = request.has("plain") && request.get("plain").getAsBoolean();
        switch (call) {
            case "delete_queue":
                queue.delete();
                return null;
            case "attributes":
                return attributes(queue.getAttributes());
            case "set_attributes":
                queue.setAttributes(meta(request));
                return null;
            case "send":
                return sent(queue.putMessage(message(request, request.get("body").getAsString(), plain)));
            case "batch_send": {
                List<Message> messages = new ArrayList<>();
                for (JsonElement body : request.getAsJsonArray("bodies")) {
                    messages.add(message(request, body.getAsString(), plain));
                }
                List<Object> values = new ArrayList<>();
                queue.batchPutMessage(messages).forEach(message -> values.add(sent(message)));
                return values;
            }
            case "receive": {
                Message message =
                    request.has("wait") ? queue.popMessage(request.get("wait").getAsInt()) : queue.popMessage();
                return message == null ? null : received(message, plain);
            }
            case "batch_receive": {
                int max = request.get("max").getAsInt();
                return all(request.has("wait")
                    ? queue.batchPopMessage(max, request.get("wait").getAsInt())
                    : queue.batchPopMessage(max), plain);
            }
            case "peek": {
                Message message = queue.peekMessage();
                return message == null ? null : received(message, plain);
            }
            case "batch_peek":
                return all(queue.batchPeekMessage(request.get("max").getAsInt()), plain);
            case "delete":
                queue.deleteMessage(request.get("handle").getAsString());
                return null;
            case "batch_delete": {
                List<String> handles = new ArrayList<>();
                request.getAsJsonArray("handles").forEach(handle -> handles.add(handle.getAsString()));
                queue.batchDeleteMessage(handles);
                return null;
            }
            case "change_visibility": {
                Message changed = queue.changeMessageVisibility(
                    request.get("handle").getAsString(), request.get("seconds").getAsInt());
                Map<String, Object> value = new LinkedHashMap<>();
                value.put("handle", changed.getReceiptHandle());
                value.put("next_visible", millis(changed.getNextVisibleTime()));
                return value;
            }
            default:
                throw new IllegalArgumentException(call);
        }
    }

    private Object list(JsonObject request) {
        PagingListResult<String> page = client.listQueueURL(
            request.has("prefix") ? request.get("prefix").getAsString() : "",
            request.has("marker") ? request.get("marker").getAsString() : "",
            request.has("max") ? request.get("max").getAsInt() : null);
        Map<String, Object> value = new LinkedHashMap<>();
        value.put("urls", page == null ? new ArrayList<>() : page.getResult());
        value.put("marker", page == null ? null : page.getMarker());
        return value;
    }

    private static QueueMeta meta(JsonObject request) {
        QueueMeta meta = new QueueMeta();
        meta.setQueueName(request.get("queue").getAsString());
        if (request.has("visibility_timeout")) {
            meta.setVisibilityTimeout(request.get("visibility_timeout").getAsLong());
        }
        if (request.has("polling_wait")) {
            meta.setPollingWaitSeconds(request.get("polling_wait").getAsInt());
        }
        if (request.has("delay")) {
            meta.setDelaySeconds(request.get("delay").getAsLong());
        }
        if (request.has("retention")) {
            meta.setMessageRetentionPeriod(request.get("retention").getAsLong());
        }
        return meta;
    }

    private static Object attributes(QueueMeta meta) {
        Map<String, Object> value = new LinkedHashMap<>();
        value.put("visibility_timeout", meta.getVisibilityTimeout());
        value.put("polling_wait", meta.getPollingWaitSeconds());
        value.put("delay", meta.getDelaySeconds());
        value.put("retention", meta.getMessageRetentionPeriod());
        value.put("active", meta.getActiveMessages());
        value.put("inactive", meta.getInactiveMessages());
        value.put("delayed", meta.getDelayMessages());
        return value;
    }

    private static Message message(JsonObject request, String body, boolean plain) {
        Message message = new Message();
        message.setMessageBody(body, plain ? MessageBodyType.RAW_STRING : MessageBodyType.BASE64);
        if (request.has("delay")) {
            message.setDelaySeconds(request.get("delay").getAsInt());
        }
        if (request.has("priority")) {
            message.setPriority(request.get("priority").getAsInt());
        }
        return message;
    }

    private static Object sent(Message message) {
        Map<String, Object> value = new LinkedHashMap<>();
        value.put("id", message.getMessageId());
        value.put("md5", message.getMessageBodyMD5());
        value.put("handle", message.getReceiptHandle());
        return value;
    }

    private static Object all(List<Message> messages, boolean plain) {
        List<Object> values = new ArrayList<>();
        if (messages != null) {
            messages.forEach(message -> values.add(received(message, plain)));
        }
        return values;
    }

    private static Object received(Message message, boolean plain) {
        Map<String, Object> value = new LinkedHashMap<>();
        value.put("id", message.getMessageId());
        value.put("body", plain ? message.getMessageBodyAsRawString() : message.getMessageBodyAsString("UTF-8"));
        value.put("md5", message.getMessageBodyMD5());
        value.put("dequeue_count", message.getDequeueCount());
        value.put("enqueued", millis(message.getEnqueueTime()));
        value.put("first_dequeued", millis(message.getFirstDequeueTime()));
        value.put("priority", message.getPriority());
        // A peeked message has neither.
        if (message.getReceiptHandle() != null) {
            value.put("handle", message.getReceiptHandle());
            value.put("next_visible", millis(message.getNextVisibleTime()));
        }
        return value;
    }

    private static Long millis(Date date) {
        return date == null ? null : date.getTime();
    }
}
