# shellcheck shell=bash

