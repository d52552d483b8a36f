package network

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watcher hears when somebody removes tables from the host's rules, as a reload of a distribution's own firewall does.
type watcher struct {
	conn *netlink.Conn
	once sync.Once
}

func watchRules() (*watcher, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, fmt.Errorf("watch rules: %w", err)
	}
	return &watcher{conn: conn}, nil
}

func (w *watcher) close() { w.once.Do(func() { w.conn.Close() }) }

// start reports on the channel when a table was removed, or when so much happened that the kernel lost count.
// The channel is closed when the watcher is.
func (w *watcher) start(ctx context.Context) <-chan struct{} {
	flushed := make(chan struct{}, 1)
	go func() {
		defer close(flushed)
		for ctx.Err() == nil {
			msgs, err := w.conn.Receive()
			hit := err != nil // ENOBUFS, or the end
			for _, m := range msgs {
				hit = hit || m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE
			}
			if hit {
				select {
				case flushed <- struct{}{}:
				default:
				}
			}
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
		}
	}()
	return flushed
}
