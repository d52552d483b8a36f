package olympus

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
)

// Replicas tell each other what templates' sandboxes do: each keeps one value with what it has seen itself, and adds what it finds in the others'. What a
// process has seen outlives it there for a while, so that a replica that starts knows what the one before it did.
const (
	lessonsPrefix = "past/"
	// lessonsEvery is how often a replica looks: arrivals are weighed over a minute, so that four times within it miss little.
	lessonsEvery = 15 * time.Second
	// lessonsKept is how long a value outlives the last change of it: by then it counts for a sixty-fourth.
	lessonsKept = 6 * time.Hour
	// lessonsMost bounds the templates in one value, lessonsBytes its size as it is read, at about 120 bytes each, and lessonsFrom the processes that are
	// learned from, the newest first.
	lessonsMost, lessonsBytes, lessonsFrom = 500, 256 << 10, 64
	// lessonsTime bounds one exchange.
	lessonsTime = 10 * time.Second
)

// exchanges tells and learns until ctx ends.
func (s *Server) exchanges(ctx context.Context) error {
	if s.cfg.Values == nil {
		return nil
	}
	for {
		one, cancel := context.WithTimeout(ctx, lessonsTime)
		err := s.exchange(one, time.Now())
		cancel()
		if err != nil && ctx.Err() == nil {
			s.log.Warn("what is known of templates not shared", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lessonsEvery):
		}
	}
}

// exchange tells the others what this replica has seen since it told them last, and learns what they have.
func (s *Server) exchange(ctx context.Context, now time.Time) error {
	if mine := s.pasts.lessons(now); mine != nil {
		body, err := json.Marshal(mine)
		if err != nil {
			return fmt.Errorf("encode lessons: %w", err)
		}
		if err := s.cfg.Values.Set(ctx, lessonsPrefix+s.self, body, lessonsKept); err != nil {
			s.pasts.again()
			return err
		}
	}
	values, err := s.cfg.Values.List(ctx, lessonsPrefix)
	if err != nil {
		return err
	}
	delete(values, lessonsPrefix+s.self)
	var all []map[string]phlegethon.Lesson
	for name, body := range values {
		var one map[string]phlegethon.Lesson
		if len(body) > lessonsBytes || json.Unmarshal(body, &one) != nil || len(one) > lessonsMost {
			s.log.Warn("lessons not understood", "from", name, "bytes", len(body)) // of a newer version, perhaps
			continue
		}
		all = append(all, one)
	}
	s.pasts.learn(all)
	return nil
}

// lessons is what the others are to be told, nil when nothing has happened since they were.
func (p *pasts) lessons(now time.Time) map[string]phlegethon.Lesson {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.news {
		return nil
	}
	p.news = false
	names := make([]string, 0, len(p.all))
	for name := range p.all {
		names = append(names, name)
	}
	if len(names) > lessonsMost { // those that were asked for last
		slices.SortFunc(names, func(a, b string) int { return p.all[b].Arrival.Last().Compare(p.all[a].Arrival.Last()) })
		names = names[:lessonsMost]
	}
	out := make(map[string]phlegethon.Lesson, len(names))
	for _, name := range names {
		out[name] = p.all[name].Lesson(now)
	}
	return out
}

// again notes that the others were not told after all.
func (p *pasts) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.news = true
}

// learn replaces what is known from others.
func (p *pasts) learn(all []map[string]phlegethon.Lesson) {
	newest := func(one map[string]phlegethon.Lesson) (at time.Time) {
		for _, l := range one {
			if l.At.After(at) {
				at = l.At
			}
		}
		return at
	}
	if len(all) > lessonsFrom {
		slices.SortFunc(all, func(a, b map[string]phlegethon.Lesson) int { return newest(b).Compare(newest(a)) })
		all = all[:lessonsFrom]
	}
	others := map[string][]phlegethon.Lesson{}
	for _, one := range all {
		for template, l := range one {
			if _, known := others[template]; known || len(others) < mostPasts {
				others[template] = append(others[template], l)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.others = others
}
