// Command tartarus-guest is the agent inside every sandbox. It serves until it is told to stop, and a
// request never makes it stop.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/tartarus-sandbox/tartarus/internal/guest/boot"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := boot.Run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "tartarus-guest:", err)
		os.Exit(1)
	}
}
