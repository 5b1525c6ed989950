// grpc-go, unary and server streaming; the messages are plain bytes, so that nothing needs to be generated.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

type plain struct{}

func (plain) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }
func (plain) Unmarshal(bytes []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), bytes...)
	return nil
}
func (plain) Name() string { return "plain" }

func main() {
	client, err := grpc.NewClient("grpc.clients.example:443",
		grpc.WithTransportCredentials(credentials.NewTLS(nil)),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plain{})))
	if err != nil {
		log.Fatal(err)
	}
	called := metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer placeholder")
	unary := func(method, text string) {
		said, answer := []byte(text), []byte(nil)
		if err := client.Invoke(called, "/clients.Orders/"+method, &said, &answer); err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(answer))
	}
	switch os.Args[1] {
	case "read":
		unary("Read", "read")
	case "write":
		unary("Place", "juniper")
	case "stream":
		stream, err := client.NewStream(called, &grpc.StreamDesc{ServerStreams: true}, "/clients.Orders/Watch")
		if err != nil {
			log.Fatal(err)
		}
		said := []byte("watch")
		if err := stream.SendMsg(&said); err != nil {
			log.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			log.Fatal(err)
		}
		for {
			var message []byte
			if err := stream.RecvMsg(&message); err == io.EOF {
				return
			} else if err != nil {
				log.Fatal(err)
			}
			fmt.Println(string(message))
		}
	}
}
