// Program served is what a user runs in a sandbox: it listens, remembers something in memory only, and echoes over WebSocket.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"

	"golang.org/x/net/websocket"
)

func main() {
	var asked atomic.Int64
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%d %d\n", os.Getpid(), asked.Add(1))
	})
	http.Handle("/echo", websocket.Handler(func(c *websocket.Conn) { _, _ = io.Copy(c, c) }))
	if err := http.ListenAndServe(":8080", nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
