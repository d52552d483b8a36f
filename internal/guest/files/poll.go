package files

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	filesystempb "github.com/tartarus-sandbox/tartarus/api/gen/filesystem"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// Bounds of the watchers of clients that poll.
const (
	maxPollers  = 128
	maxUnpolled = 10_000           // events kept between two polls
	abandoned   = 15 * time.Minute // without a poll, a watcher may be given up for a new one
)

// poller collects the events of one watcher until its client asks.
type poller struct {
	*watching
	mu     sync.Mutex
	events []*filesystempb.FilesystemEvent
	failed error // why no more events come
	polled time.Time
}

// pollers are the watchers that clients made and have not removed.
type pollers struct {
	mu   sync.Mutex
	byID map[string]*poller
}

// collect keeps events until the watcher is closed or too many wait.
func (p *poller) collect(ctx context.Context) {
	for {
		events, err := p.next(ctx)
		p.mu.Lock()
		if len(p.events)+len(events) > maxUnpolled {
			err = tartarus.Errorf(tartarus.Exhausted, "watch %s: more than %d events since the last poll, and some are lost", p.root, maxUnpolled)
		}
		if err != nil {
			p.failed = err
			p.mu.Unlock()
			p.Close()
			return
		}
		p.events = append(p.events, events...)
		p.mu.Unlock()
	}
}

// CreateWatcher implements filesystemconnect.FilesystemHandler.
func (s *Service) CreateWatcher(ctx context.Context, req *connect.Request[filesystempb.CreateWatcherRequest]) (*connect.Response[filesystempb.CreateWatcherResponse], error) {
	w, err := s.watch(req, req.Msg)
	if err != nil {
		return nil, fault.Connect(err)
	}
	p := &poller{watching: w, polled: time.Now()}
	id := rand.Text()
	if err := s.pollers.put(id, p); err != nil {
		w.Close()
		return nil, fault.Connect(err)
	}
	// It outlives this call; Close ends it.
	go p.collect(context.WithoutCancel(ctx))
	return connect.NewResponse(&filesystempb.CreateWatcherResponse{WatcherId: id}), nil
}

func (ps *pollers) put(id string, p *poller) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.byID == nil {
		ps.byID = make(map[string]*poller)
	}
	if len(ps.byID) >= maxPollers && !ps.giveUpOne() {
		return tartarus.Errorf(tartarus.Exhausted, "more than %d watchers: remove some", maxPollers)
	}
	ps.byID[id] = p
	return nil
}

// giveUpOne removes the watcher that was not polled for the longest time, if that is long enough.
func (ps *pollers) giveUpOne() bool {
	var oldest string
	var last time.Time
	for id, p := range ps.byID {
		p.mu.Lock()
		polled := p.polled
		p.mu.Unlock()
		if oldest == "" || polled.Before(last) {
			oldest, last = id, polled
		}
	}
	if time.Since(last) < abandoned {
		return false
	}
	ps.byID[oldest].Close()
	delete(ps.byID, oldest)
	return true
}

// GetWatcherEvents implements filesystemconnect.FilesystemHandler.
func (s *Service) GetWatcherEvents(_ context.Context, req *connect.Request[filesystempb.GetWatcherEventsRequest]) (*connect.Response[filesystempb.GetWatcherEventsResponse], error) {
	s.pollers.mu.Lock()
	p := s.pollers.byID[req.Msg.GetWatcherId()]
	s.pollers.mu.Unlock()
	if p == nil {
		return nil, fault.Connect(unknownWatcher(req.Msg.GetWatcherId()))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.polled = time.Now()
	events := p.events
	p.events = nil
	if len(events) == 0 && p.failed != nil {
		return nil, fault.Connect(p.failed)
	}
	return connect.NewResponse(&filesystempb.GetWatcherEventsResponse{Events: events}), nil
}

// RemoveWatcher implements filesystemconnect.FilesystemHandler.
func (s *Service) RemoveWatcher(_ context.Context, req *connect.Request[filesystempb.RemoveWatcherRequest]) (*connect.Response[filesystempb.RemoveWatcherResponse], error) {
	s.pollers.mu.Lock()
	p := s.pollers.byID[req.Msg.GetWatcherId()]
	delete(s.pollers.byID, req.Msg.GetWatcherId())
	s.pollers.mu.Unlock()
	if p == nil {
		return nil, fault.Connect(unknownWatcher(req.Msg.GetWatcherId()))
	}
	p.Close()
	return connect.NewResponse(&filesystempb.RemoveWatcherResponse{}), nil
}

func unknownWatcher(id string) error {
	return tartarus.Errorf(tartarus.NotFound, "watcher with id '%.64s' not found", id)
}

// Close ends all watchers.
func (s *Service) Close() {
	s.pollers.mu.Lock()
	defer s.pollers.mu.Unlock()
	for id, p := range s.pollers.byID {
		p.Close()
		delete(s.pollers.byID, id)
	}
}
