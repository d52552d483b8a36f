package journal

import (
	"context"
	"log/slog"
	"strings"
)

// Handler writes slog records into a Journal. Groups become prefixes of the field names.
type Handler struct {
	journal *Journal
	level   slog.Level
	prefix  string
	fields  map[string]any
}

// NewHandler makes a Handler that keeps records of at least level.
func NewHandler(j *Journal, level slog.Level) *Handler {
	return &Handler{journal: j, level: level}
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle implements slog.Handler.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	fields := h.with(r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		put(fields, h.prefix, a)
		return true
	})
	h.journal.Add(strings.ToLower(r.Level.String()), r.Message, fields)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.fields = h.with(len(attrs))
	for _, a := range attrs {
		put(next.fields, h.prefix, a)
	}
	return &next
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	next := *h
	if name != "" {
		next.prefix += name + "."
	}
	return &next
}

func (h *Handler) with(more int) map[string]any {
	fields := make(map[string]any, len(h.fields)+more)
	for k, v := range h.fields {
		fields[k] = v
	}
	return fields
}

func put(fields map[string]any, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			put(fields, prefix, inner)
		}
		return
	}
	if err, ok := v.Any().(error); ok {
		fields[prefix+a.Key] = err.Error()
		return
	}
	fields[prefix+a.Key] = v.Any()
}
