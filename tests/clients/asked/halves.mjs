// Masks as clients send them: the left half of a picture is drawn anew, the right half stays.
import { PNG } from "pngjs";
import { expect } from "./told.mjs";

export const [DRAWN, DRAWN_ANEW] = ["a red circle on a white background", "a blue square on a black background"];
// How much of 255 the half that is drawn anew differs at least, and how many times less the other one: the VAE reads across.
const [OTHER, TIMES] = [60, 4];

// The picture as PNG, its left half transparent: OpenAI's way to say what is drawn anew.
export function seeThrough(picture) {
  const made = PNG.sync.read(Buffer.from(picture));
  for (let y = 0; y < made.height; y += 1) {
    const start = y * made.width * 4;
    made.data.fill(0, start, start + Math.floor(made.width / 2) * 4);
  }
  return PNG.sync.write(made);
}

// Throws where it is not so; looks at the outer quarters.
export function expectLeftDrawnAnew(before, after) {
  const [one, other] = [before, after].map((picture) => PNG.sync.read(Buffer.from(picture)));
  expect(one.width === other.width && one.height === other.height, `it became ${other.width} x ${other.height}`);
  const quarter = Math.floor(one.width / 4);
  const [left, right] = [0, one.width - quarter].map((start) => difference(one, other, start, quarter));
  expect(left > OTHER, `the left half was not drawn anew: it differs by ${left}`);
  expect(right * TIMES < left, `the right half did not stay: it differs by ${right}, the left one by ${left}`);
}

function difference(one, other, start, width) {
  let sum = 0;
  for (let y = 0; y < one.height; y += 1) {
    for (let x = start; x < start + width; x += 1) {
      for (let colour = 0; colour < 3; colour += 1) {
        const place = (y * one.width + x) * 4 + colour;
        sum += Math.abs(one.data[place] - other.data[place]);
      }
    }
  }
  return sum / (one.height * width * 3);
}
