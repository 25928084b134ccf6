// Charts of the last minute on canvases: axes with units, bars, lines, dots. No library.

const LEFT = 48, RIGHT = 8, TOP = 22, BOTTOM = 18;  // pixels around the drawing
const FONT = '11px ui-sans-serif, system-ui, "Noto Sans", "DejaVu Sans", sans-serif';
const STEPS = [1, 2, 3, 4, 5, 6, 8, 10];

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The least round number that is not below the value. */
export function above(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-12)));
  return power * STEPS.find((step) => step * power >= value * 0.9999);
}

/** A number with three digits at most, and thousands as k. */
export function short(value) {
  if (value >= 1e6) return `${short(value / 1e6)}M`;
  if (value >= 1e4) return `${short(value / 1e3)}k`;
  return String(Number(value.toPrecision(value >= 1000 ? 4 : 3)));
}

/** One chart: times are seconds up to `now`, of which `seconds` are shown. */
export class Chart {
  constructor(canvas, seconds, unit) {
    this.canvas = canvas;
    this.seconds = seconds;
    this.unit = unit;
  }

  /** Clear it for a new drawing. */
  begin(now) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
    }
    const pen = this.pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = FONT;
    pen.textBaseline = "middle";
    Object.assign(this, { now, width, height });
    this.bottom = height - BOTTOM;
    this.ink = { line: colour("line"), soft: colour("soft"), ink: colour("ink") };
    this.times();
    return this;
  }

  x(time) {
    return LEFT + (this.width - LEFT - RIGHT) * (1 - (this.now - time) / this.seconds);
  }

  y(value) {
    const { low, high, log } = this.scale;
    const share = log
      ? Math.log(Math.max(value, low) / low) / Math.log(high / low)
      : (value - low) / (high - low);
    return this.bottom - (this.bottom - TOP) * Math.min(Math.max(share, 0), 1);
  }

  times() {
    const { pen } = this;
    pen.fillStyle = this.ink.soft;
    for (let ago = this.seconds; ago >= 0; ago -= 15) {
      const x = this.x(this.now - ago);
      pen.textAlign = ago === 0 ? "right" : ago === this.seconds ? "left" : "center";
      pen.fillText(ago === 0 ? "now" : `−${ago} s`, x, this.height - 7);
    }
  }

  grid(value, text) {
    const { pen } = this, y = Math.round(this.y(value)) + 0.5;
    pen.strokeStyle = this.ink.line;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(LEFT, y);
    pen.lineTo(this.width - RIGHT, y);
    pen.stroke();
    pen.fillStyle = this.ink.soft;
    pen.textAlign = "right";
    pen.fillText(text, LEFT - 6, y);
  }

  title() {
    this.pen.fillStyle = this.ink.soft;
    this.pen.textAlign = "left";
    this.pen.fillText(this.unit, 0, 6);
  }

  /** A scale from 0 to a round number. */
  linear(most) {
    const high = above(most);
    this.scale = { low: 0, high, log: false };
    const first = Math.round(high / 10 ** Math.floor(Math.log10(high * 1.0001)));
    const lines = this.bottom - TOP < 90 ? 2 : first % 3 === 0 ? 3 : first === 5 ? 5 : 4;
    for (let i = 0; i <= lines; i++) this.grid((high * i) / lines, short((high * i) / lines));
    this.title();
    return this;
  }

  /** A scale of powers of ten. */
  powers(low, high) {
    low = 10 ** Math.floor(Math.log10(low));
    high = 10 ** Math.ceil(Math.log10(high));
    if (high === low) high *= 10;
    this.scale = { low, high, log: true };
    const steps = Math.round(Math.log10(high / low)), every = steps > 3 ? 2 : 1;
    for (let i = 0; i <= steps; i += every) this.grid(low * 10 ** i, short(low * 10 ** i));
    this.title();
    return this;
  }

  /** Columns on top of each other. bins: [{from, to, parts: [[colour, value], …]}] */
  columns(bins) {
    const { pen } = this;
    pen.save();
    this.clip();
    for (const { from, to, parts } of bins) {
      const x = this.x(from), wide = Math.max(this.x(to) - x - 0.6, 0.8);
      let sum = 0;
      for (const [paint, value] of parts) {
        if (!(value > 0)) continue;
        const y = this.y(sum + value);
        pen.fillStyle = paint;
        pen.fillRect(x, y, wide, this.y(sum) - y);
        sum += value;
      }
    }
    pen.restore();
  }

  /** A line through [time, value] pairs; null parts it. steps: it holds until the next. */
  line(pairs, paint, { dash = [], steps = false, wide = 1.8 } = {}) {
    const { pen } = this;
    pen.save();
    this.clip();
    pen.strokeStyle = paint;
    pen.lineWidth = wide;
    pen.lineJoin = "round";
    pen.setLineDash(dash);
    pen.beginPath();
    let before = null;
    for (const [time, value] of pairs) {
      if (value === null) {
        before = null;
        continue;
      }
      const x = this.x(time), y = this.y(value);
      if (before === null) pen.moveTo(x, y);
      else {
        if (steps) pen.lineTo(x, before);
        pen.lineTo(x, y);
      }
      before = y;
    }
    pen.stroke();
    pen.restore();
  }

  /** A dashed line across, with words at its end. */
  mark(value, text, paint) {
    const { pen } = this, y = Math.round(this.y(value)) + 0.5;
    pen.save();
    pen.strokeStyle = pen.fillStyle = paint;
    pen.setLineDash([4, 4]);
    pen.beginPath();
    pen.moveTo(LEFT, y);
    pen.lineTo(this.width - RIGHT, y);
    pen.stroke();
    pen.textAlign = "right";
    pen.fillText(text, this.width - RIGHT, y - 8);
    pen.restore();
  }

  /** Shade the time between each pair. */
  shade(spans, paint) {
    const { pen } = this;
    pen.save();
    this.clip();
    pen.globalAlpha = 0.14;
    pen.fillStyle = paint;
    for (const [from, to] of spans) {
      pen.fillRect(this.x(from), TOP, Math.max(this.x(to) - this.x(from), 1), this.bottom - TOP);
    }
    pen.restore();
  }

  /** Rows with names, a dot for each [time, name, colour]. */
  rows(names, dots) {
    const { pen } = this, room = this.bottom - 4, each = room / Math.max(names.length, 1);
    const left = Math.min(Math.max(...names.map((n) => pen.measureText(n).width), 0) + 10, 140);
    const place = new Map(names.map((name, i) => [name, 4 + each * (i + 0.5)]));
    pen.textAlign = "left";
    for (const [name, y] of place) {
      pen.strokeStyle = this.ink.line;
      pen.beginPath();
      pen.moveTo(left, Math.round(y) + 0.5);
      pen.lineTo(this.width - RIGHT, Math.round(y) + 0.5);
      pen.stroke();
      pen.fillStyle = this.ink.soft;
      pen.fillText(name, 0, y);
    }
    const wide = Math.min(3.2, Math.max(2, each / 5));
    for (const [time, name, paint] of dots) {
      const x = this.x(time);
      if (x < left) continue;
      pen.fillStyle = paint;
      pen.beginPath();
      pen.arc(x, place.get(name), wide, 0, 7);
      pen.fill();
    }
  }

  /** A word in the middle of what has nothing to show. */
  empty(text) {
    this.pen.fillStyle = this.ink.soft;
    this.pen.textAlign = "center";
    this.pen.fillText(text, (LEFT + this.width) / 2, (TOP + this.bottom) / 2);
  }

  clip() {
    this.pen.beginPath();
    this.pen.rect(LEFT, 0, this.width - LEFT - RIGHT, this.bottom);
    this.pen.clip();
  }
}
