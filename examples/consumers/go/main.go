// Handles media events from JetStream, each one once.
//
//	go run .
//
// Environment, with defaults: NATS_URL=nats://127.0.0.1:4222 NATS_STREAM=MEDIA NATS_SUBJECT=media.*.*
// NATS_DURABLE=media-example
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type key struct{ source, id string }

// It forgets at a restart. A service with a database inserts source and id there, in the transaction of its own data:
// see ../python/consumer.py.
var seen = map[key]bool{}

var handlers = map[string]func(cloudevents.Event) string{
	"com.aliyun.media.TranscodeComplete":    transcoded,
	"com.aliyun.media.AIMediaAuditComplete": reviewed,
	"com.aliyun.media.CreateAuditComplete":  reviewed,
}

// VOD sends this type when all streams of a video have ended, IMS for each sub-job: see `dialect`.
func transcoded(event cloudevents.Event) string {
	// `status` decides. `data.error` may exist although the work succeeded.
	if event.Extensions()["status"] == "success" {
		return "ready"
	}
	return "not ready"
}

func reviewed(event cloudevents.Event) string {
	var data struct{ Reason string } // other fields are ignored
	must(0, event.DataAs(&data))
	verdict, _ := event.Extensions()["verdict"].(string)
	// Not every review has a verdict, and a later version may add one that this code does not know.
	result := cmp.Or(map[string]string{"pass": "show", "block": "hide"}[verdict], "ask a person")
	return fmt.Sprintf("%s (%s)", result, cmp.Or(data.Reason, "no reason"))
}

func handle(event cloudevents.Event) {
	what := fmt.Sprintf("%s %s %v", event.Type(), event.Subject(), event.Extensions()["status"])
	handler, isKnown := handlers[event.Type()]
	key := key{event.Source(), event.ID()}
	if !isKnown {
		fmt.Println("unknown type", what)
	} else if seen[key] {
		fmt.Println("repeat", what)
	} else {
		fmt.Printf("handled %s: %s\n", what, handler(event))
		seen[key] = true
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	connection := must(nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL)))
	stream := must(must(jetstream.New(connection)).Stream(ctx, cmp.Or(os.Getenv("NATS_STREAM"), "MEDIA")))
	consumer := must(stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:       cmp.Or(os.Getenv("NATS_DURABLE"), "media-example"),
		FilterSubject: cmp.Or(os.Getenv("NATS_SUBJECT"), "media.*.*"), // media.> would add the dead letters
		AckPolicy:     jetstream.AckExplicitPolicy,
	}))
	// A message that is not acknowledged within AckWait (default: 30 s) comes again. So this fetches no more than it can
	// handle in that time.
	messages := must(consumer.Messages(jetstream.PullMaxMessages(16)))
	context.AfterFunc(ctx, messages.Drain)
	for {
		message, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			break
		}
		var event cloudevents.Event
		if err := json.Unmarshal(must(message, err).Data(), &event); err != nil {
			fmt.Printf("not a CloudEvent %s: %v\n", message.Subject(), err)
		} else if err := event.Validate(); err != nil {
			fmt.Printf("not a CloudEvent %s: %v\n", message.Subject(), err)
		} else {
			handle(event)
		}
		// Only now. If this program ends before, it gets the message again.
		if err := message.Ack(); err != nil {
			log.Print(err)
		}
	}
	must(0, connection.Drain()) // the last acknowledgements are sent
}
