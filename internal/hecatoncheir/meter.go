package hecatoncheir

import (
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Meter counts what happens on a node. Its methods may be called concurrently and return at once.
type Meter interface {
	// Created is a start that is over; err is nil when the sandbox runs.
	Created(took time.Duration, err error)
	// Ended is a sandbox of which nothing is left; took is how long its end did.
	Ended(reason tartarus.Reason, took time.Duration)
	// Cancelled is a termination that was called off.
	Cancelled()
	// Hibernated is an attempt to put an idle sandbox to sleep.
	Hibernated(took time.Duration, err error)
	// Woken is an attempt to wake one.
	Woken(took time.Duration, err error)
	// Devices is what the devices of a virtual machine did since its last measurement.
	Devices(done tartarus.DeviceCounts)
}

// unmetered counts nothing.
type unmetered struct{}

func (unmetered) Created(time.Duration, error)         {}
func (unmetered) Ended(tartarus.Reason, time.Duration) {}
func (unmetered) Cancelled()                           {}
func (unmetered) Hibernated(time.Duration, error)      {}
func (unmetered) Woken(time.Duration, error)           {}
func (unmetered) Devices(tartarus.DeviceCounts)        {}

func meterOrNone(m Meter) Meter {
	if m == nil {
		return unmetered{}
	}
	return m
}
