package hecatoncheir

import (
	"context"
	"fmt"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

const (
	// mountTime is how long a guest may take to mount one volume; it needs 20 milliseconds.
	mountTime = 10 * time.Second
	// remountPause is between two attempts to serve a guest whose connection ended.
	remountPause    = 100 * time.Millisecond
	maxRemountPause = 5 * time.Second
)

// mountVolumes has the guest mount what its sandbox asked for, in the order it was asked for. Until the sandbox has settled nobody answers
// what the guest asks; it waits.
func (a *Agent) mountVolumes(ctx context.Context, h *held) error {
	if len(h.spec.Volumes) == 0 {
		return nil
	}
	h.mu.Lock()
	guest := h.guest
	h.mu.Unlock()
	if a.cfg.Volumes == nil || guest == nil {
		return tartarus.Errorf(tartarus.Unsupported, "volumes cannot be mounted on node %s", a.cfg.Name)
	}
	for _, v := range h.spec.Volumes {
		_, release, err := a.cfg.Volumes.Open(v.ID)
		if err != nil {
			return fmt.Errorf("mount volume %s: %w", v.Name, err)
		}
		release()
		one, cancel := context.WithTimeout(ctx, mountTime)
		conn, err := guest.Volume(one, v.Path)
		cancel()
		if err != nil {
			return fmt.Errorf("mount volume %s at %s: %w", v.Name, v.Path, err)
		}
		_ = conn.Close() // settled, it gets one that is served
	}
	return nil
}

// serveVolumes answers what a guest asks of its volumes until ctx ends.
func (a *Agent) serveVolumes(ctx context.Context, h *held) {
	h.mu.Lock()
	guest := h.guest
	h.mu.Unlock()
	if a.cfg.Volumes == nil || guest == nil {
		return
	}
	for _, v := range h.spec.Volumes {
		go a.serveVolume(ctx, h, guest, v)
	}
}

// serveVolume keeps one volume served: a connection that ends is followed by another for as long as the sandbox lives.
func (a *Agent) serveVolume(ctx context.Context, h *held, guest *guestclient.Client, v tartarus.VolumeMount) {
	wait := remountPause
	for ctx.Err() == nil {
		began := time.Now()
		err := a.serveConnection(ctx, guest, v)
		if time.Since(began) > maxRemountPause {
			wait = remountPause
		}
		if err != nil && ctx.Err() == nil {
			a.log.Warn("volume not served", "sandbox", h.spec.ID, "tenant", h.spec.Tenant, "volume", v.ID, "error", err)
		}
		pause(ctx, wait)
		wait = min(2*wait, maxRemountPause)
	}
}

func (a *Agent) serveConnection(ctx context.Context, guest *guestclient.Client, v tartarus.VolumeMount) error {
	files, release, err := a.cfg.Volumes.Open(v.ID)
	if err != nil {
		return err
	}
	defer release()
	one, cancel := context.WithTimeout(ctx, mountTime)
	conn, err := guest.Volume(one, v.Path)
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	return files.Serve(ctx, conn)
}
